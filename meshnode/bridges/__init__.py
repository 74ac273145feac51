"""SHELL: what offers the models of a cluster or of another router to the mesh, and the registry of those that the user added."""
