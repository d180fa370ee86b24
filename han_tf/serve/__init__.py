"""The search service: an HTTP interface and a page over a gallery and a network; README.md beside this file.

FastAPI and uvicorn are imported where the service is started, not here.
"""
