"""From open-domain videos to shards of captioned clips."""

import os

# onnxruntime's wheels send usage events and write an identifier unless this is set before import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
