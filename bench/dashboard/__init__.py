"""The service under a real Prometheus: are targets up, do rules and the dashboard give data?"""
