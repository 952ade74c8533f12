"""Engine bundles: the manifest, and the folder that holds it together with the engine."""
