"""One adapter family per file. The only place that imports torch, ultralytics, transformers and their kin."""
