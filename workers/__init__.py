"""One process per loaded model. Imports `zoo`, never `broker`."""
