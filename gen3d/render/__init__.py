"""Films, sheets of views and meshes of finished scenes and generators."""
