"""Requests over HTTP: routes, handlers, content types, lists, watches, discovery."""
