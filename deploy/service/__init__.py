"""The gallery over HTTP: query, enrol, erase and upgrade, behind tokens, limits and an audit chain.

Importing this loads no web framework; :func:`deploy.service.app.create_app` and ``reid serve`` do.
"""
