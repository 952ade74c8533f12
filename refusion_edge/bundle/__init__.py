"""Engine bundles: the specification, the manifest, and the folder that holds them together with the engine."""
