"""The page of gen3d view: objects, runs and captures in the browser."""
