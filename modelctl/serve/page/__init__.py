"""The page at `/`, where a person tries a model in a browser, and `/docs`, where `/openapi.json` can be read and tried.

HTML, CSS and JavaScript as they are written here: there is no build, and nothing is fetched from elsewhere.
"""
