"""Data sets and backbone weights: download them, find them again, verify them, and bundle them for other machines.

    DATA_DIR/NAME/CATEGORY/                  category in MVTec AD layout; appears complete, by a rename
    DATA_DIR/NAME/CATEGORY/digests.sha256    SHA-256 digest of each of its files
    DATA_DIR/NAME/fetched.json               source and digest of each category
    DATA_DIR/NAME/.fetching/                 unfinished downloads; deleted after a successful fetch
    DATA_DIR/weights/NAME.safetensors, NAME.json

The modules print nothing and ask nothing.
"""
