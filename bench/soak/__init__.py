"""The service under steady load for a while: does anything grow that should not?"""
