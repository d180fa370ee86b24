"""The search service: an HTTP interface and a page for a gallery and a network; README.md in this folder describes it.

FastAPI and uvicorn are imported when the service is started, not here.
"""
