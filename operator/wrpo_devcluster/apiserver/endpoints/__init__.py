"""HTTP endpoints: routes, handlers, content types, lists, watches, discovery."""
