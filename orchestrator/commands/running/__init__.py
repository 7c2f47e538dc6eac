"""Commands that start something: an instance, a worker, a service; and what they need to be reached."""
