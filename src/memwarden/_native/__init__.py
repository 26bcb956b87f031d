"""The optional C part. Importing this package does nothing; its modules are loaded by name where they are used."""
