"""Where the leak verdict comes from and how good it is: real programs recorded, a model fitted, figures printed."""
