"""Page of the server: templates, static files and their routes."""
