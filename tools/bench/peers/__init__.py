"""What shmcache is measured beside, each at its best settings."""
