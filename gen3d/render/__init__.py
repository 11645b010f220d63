"""Films, sheets and meshes of finished scenes and generators."""
