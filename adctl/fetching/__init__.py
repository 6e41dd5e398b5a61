"""Bringing data sets and backbone weights to this machine, finding them again, and carrying them on to others.

    DATA_DIR/NAME/CATEGORY/                  a category in MVTec AD layout, put there whole by a rename
    DATA_DIR/NAME/CATEGORY/digests.sha256    of each of its files
    DATA_DIR/NAME/fetched.json               where each category came from, and its digest
    DATA_DIR/NAME/.fetching/                 unfinished downloads; gone once a fetch is done
    DATA_DIR/weights/NAME.safetensors, NAME.json

Prints nothing and asks nothing.
"""
