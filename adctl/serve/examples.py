"""Examples of the API for its documentation: parameters, bodies and answers of one imagined line."""

from __future__ import annotations

from typing import Any

_ID, _REVIEW, _TRAINING = "01KB4TC4ZQ5W3M1V0F7N7E6H2K", "01KB4TD0Y2J8N6R4T5W7X9Z1A3", "01KB4SZ8M3Q5S7V9X1Z3B5D7F9"
_TIME, _EARLIER = "2026-03-02T06:14:09.512+00:00", "2026-03-02T05:58:41.007+00:00"
_MODEL_DIGEST = "9f2c1d6b5a4e8f7031526c7d8e9fa0b1c2d3e4f5061728394a5b6c7d8e9f0a1b"
_CALIBRATION_DIGEST = "4b7e0c9a8d6f5e3b2a1908f7e6d5c4b3a29180706f5e4d3c2b1a09f8e7d6c5b4"
_TRAINING_DIGEST = "c1a2b3d4e5f60718293a4b5c6d7e8f9001122334455667788990aabbccddeeff"
_PROMISE = "At most 1 % false alarms, by 143 good images."

PARAMETERS: dict[str, Any] = {
    "name": "line3", "id": _ID, "source": "camera1", "model": "line3", "file": "bolts/left/part-17.png",
    "threshold": 2.1, "min_score": 1.5, "lot": "L7", "part": "P-0017", "q": "part-17", "kind": "scratch",
    "map": "overlay", "verdict": "reject", "label": "defect", "since": _EARLIER, "until": _TIME, "limit": 50,
    "cursor": _ID, "upload": _TRAINING, "last-event-id": _ID,
}  # fmt: skip
"""Values of parameters by name."""

PROBLEMS: dict[int, tuple[str, str]] = {
    400: ("There is no such model in the folder of models.", "Give its path inside that folder."),
    401: (
        "A key is needed: it is missing, wrong or revoked.",
        "Send it as 'Authorization: Bearer KEY'; 'adctl serve keys add NAME' makes one.",
    ),
    403: ("The key 'camera1' has the role score; this needs admin.", ""),
    404: ("There is no loaded model 'line4'.", "Loaded models: line3."),
    408: ("The body came too slowly.", "Send it faster, or send smaller images."),
    409: ("Another training is running.", "Wait until it is done, or stop it."),
    413: ("The body is larger than 64000000 bytes.", "Send smaller images, or start the server with --max-upload."),
    415: ("The content type text/plain is not accepted.", "Send an image, or a form with images."),
    422: ("The image part-17.png is empty.", "Send the bytes of a PNG, JPEG, BMP, TIFF, WebP or NumPy image."),
    429: ("32 images wait already.", "Try again after the seconds in Retry-After."),
    503: ("The server is shutting down.", ""),
}
"""Details and remedies of problems by status."""

_PNG, _NPY = "(the bytes of a PNG file)", "(the bytes of a NumPy file)"

CONTENTS: dict[str, Any] = {
    "image/png": _PNG,
    "image/jpeg": "(the bytes of a JPEG file)",
    "image/tiff": "(the bytes of a TIFF file)",
    "image/bmp": "(the bytes of a BMP file)",
    "image/webp": "(the bytes of a WebP file)",
    "application/x-npy": _NPY,
    "multipart/form-data": {"images": [_PNG, _PNG]},
    "text/plain": 'adctl_verdicts_total{model="line3",verdict="reject"} 17.0\n',
    "text/event-stream": f'id: {_ID}\nevent: verdict\ndata: {{"model": "line3", "verdict": "reject"}}\n\n',
}
"""Bodies and answers that are no JSON, by content type."""

_BOX = {"x": 120, "y": 40, "width": 25, "height": 18, "peak": 3.9}
_REGION = {"x": 118, "y": 38, "width": 30, "height": 22}
_RESULT = {
    "id": _ID, "name": "part-17.png", "score": 3.81, "p_value": 0.0069, "probability": 0.998, "verdict": "reject",
    "boxes": [_BOX], "threshold": 2.1, "pixel_threshold": 2.4, "width": 640, "height": 480, "kind": None,
    "kind_probability": None, "map": None, "error": None,
}  # fmt: skip
_STORED = {"stored": True, "missing": 0}
_MISSED = {"missing": 0, "reason": ""}
_SCORE = {
    "request_id": _REVIEW, "model": "line3", "results": [_RESULT], "calibration_digest": _CALIBRATION_DIGEST,
    "model_digest": _MODEL_DIGEST, "history": _STORED,
    "milliseconds": {"decode": 1.9, "queue": 0.2, "predict": 9.4, "post": 0.8, "history": 0.9, "total": 13.6},
}  # fmt: skip
_MODEL = {
    "name": "line3", "arch": "patchcore", "model_digest": _MODEL_DIGEST, "calibration_digest": _CALIBRATION_DIGEST,
    "version": 2, "loaded": True, "runtime": "openvino", "device": "cpu", "image_size": [256, 256],
    "method": "conformal", "level": 0.01, "threshold": 2.1, "warn_threshold": None, "promise": _PROMISE,
    "calibration_images": 143, "classes": None, "drift": None,
}  # fmt: skip
_LABEL = {
    "id": _REVIEW, "verdict_id": _ID, "time": _TIME, "model": "line3", "label": "defect", "kind": "scratch",
    "region": _REGION, "comment": "at the left edge", "reviewer": "anna",
    "image": f"reviews/line3/defect/scratch/{_ID}.png",
}  # fmt: skip
_VERDICT = {
    "id": _ID, "time": _TIME, "request": _REVIEW, "model": "line3", "model_sha256": _MODEL_DIGEST,
    "calibration_sha256": _CALIBRATION_DIGEST, "name": "part-17.png", "lot": "L7", "part": "P-0017",
    "client": "camera1", "verdict": "reject", "score": 3.81, "p_value": 0.0069, "probability": 0.998,
    "threshold": 2.1, "pixel_threshold": 2.4, "width": 640, "height": 480, "boxes": [_BOX], "error": "",
    "milliseconds": 13.6, "image": ".png", "has_map": True, "kind": None, "kind_probability": None, "review": _LABEL,
}  # fmt: skip
_THRESHOLD = {
    "model": "line3", "threshold": 2.1, "warn_threshold": None, "promise": _PROMISE, "promised_false_alarm": 0.01,
    "expected_false_alarm": 0.007, "false_alarm_interval": [0.001, 0.02], "good_images": 143, "good_above": 1,
    "notes": [], "recent": 500,
}  # fmt: skip
_RUNNING = {
    "id": _TRAINING, "name": "line3", "arch": "patchcore", "state": "running", "started": _EARLIER, "who": "anna",
    "seconds": 4.2, "progress": {"stage": "memory bank", "done": 96, "total": 300, "note": ""}, "model": None,
    "error": None, "updates": None,
}  # fmt: skip
_CANDIDATE = {
    "training": {
        **_RUNNING, "state": "finished", "seconds": 21.7, "model": "/srv/runs/line3-3b5d7f9/model.safetensors",
        "updates": "/srv/runs/line3/model.safetensors",
    },
    "update": {
        "schema": "adctl.update/1", "present": "/srv/runs/line3/model.safetensors", "way": "new images alone",
        "learned": 96, "held_out": 0, "set_aside": [], "notes": [],
        "comparison": {"recommendation": "accept", "reason": "There are 9 fewer false alarms (p = 0.0039)."},
    },
    "accepted": False,
}  # fmt: skip
_SINK = {
    "name": "mqtt://broker/line3", "delivered": 8120, "waiting": 0, "expired": 0, "failures": 1, "error": "",
    "median_ms": 18.4, "p95_ms": 31.0, "max_ms": 211.5,
}  # fmt: skip

MODELS: dict[str, Any] = {
    "ScoreAnswer": _SCORE,
    "ImageAnswer": _RESULT,
    "ModelInfo": _MODEL,
    "LoadRequest": {"path": "line3"},
    "LegacyLoad": {"model_path": "line3"},
    "VersionInfo": {
        "version": 2, "active": True, "model_digest": _MODEL_DIGEST, "threshold": None, "since": _TIME,
        "changed_by": "anna", "present": True,
    },
    "Lineage": {
        "dataset": "bolts", "category": "left", "training_images": 300, "training_digest": _TRAINING_DIGEST,
        "model_digest": _MODEL_DIGEST, "calibration_digest": _CALIBRATION_DIGEST, "calibration_images": 143,
        "adctl_version": "1.0.0",
    },
    "Activation": {"version": 1},
    "PresentThreshold": {
        **_THRESHOLD, "own": 2.1, "undo": False,
        "histogram": {"edges": [0.5, 1.0, 1.5, 2.0, 2.5], "calibration": [40, 82, 20, 1], "recent": [150, 290, 51, 9]},
    },
    "ThresholdChange": {"max_false_alarm": 0.02, "preview": True},
    "ChosenThreshold": {
        **_THRESHOLD, "applied": False, "changed_count": 1,
        "changed": [{**_VERDICT, "was": "reject", "becomes": "good"}],
    },
    "TrainingRequest": {"name": "line3", "folder": "line3/good"},
    "TrainingInfo": _RUNNING,
    "TrainingList": {"trainings": [_RUNNING], "detectors": ["patchcore", "padim"], "folders": ["line3/good"]},
    "Uploaded": {"upload": _TRAINING, "images": 12},
    "CandidateRequest": {"kind": "recalibrate"},
    "CandidateList": {"reviewed": {"good": 96, "defect": 11, "unsure": 2}, "candidates": [_CANDIDATE]},
    "LineState": {
        "sources": [{"name": "camera1", "address": "rtsp://10.0.0.7/stream", "state": "running"}], "sinks": [_SINK],
    },
    "Status": {"status": "ok"},
    "Readiness": {"status": "ready", "models": ["line3"], "history": _MISSED, "images": {"failed": 0}},
    "ServerStatus": {"status": "ok", "models": [_MODEL], "queue": 2, "history": _MISSED},
    "VerdictAnswer": _VERDICT,
    "HistoryPage": {"verdicts": [_VERDICT], "cursor": None},
    "ReviewRequest": {"verdict_id": _ID, "label": "defect", "kind": "scratch", "region": _REGION},
    "ReviewAnswer": _LABEL,
    "ReviewsPage": {"reviews": [_LABEL], "cursor": None},
    "AuditPage": {
        "entries": [
            {
                "id": _ID, "time": _TIME, "who": "anna", "action": "activate", "target": "line3",
                "details": {"version": 2},
            }
        ]
    },
    "Session": {"name": "anna", "role": "review", "csrf": "", "needs_key": True},
    "LoginRequest": {"key": "adctl_01KB4TC4ZQ5W3M1V0F7N7E6H2K_the-secret-part"},
}  # fmt: skip
"""Bodies and answers that are JSON, by the name of their model."""
