"""Reports: metrics of a scored set, and one HTML page that shows them."""
