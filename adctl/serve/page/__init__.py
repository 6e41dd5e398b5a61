"""The page of the server: templates, modules for the browser, and sentences in several languages."""
