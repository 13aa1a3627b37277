"""docker-compose.yml on a real engine; see ``__main__``."""
