"""The page of ``hser-lookup serve``: a map of a run to look at, listen to and ask with a recording.

corpus_map   the rows that are drawn, and where; places a query on the same map
uploads      a recording that was sent: bounded, looked up, never kept
guard        who may ask: the host's own name, the page's own origin; security headers; in which time
app          the routes, and a row's own recording as a browser plays it; needs the extra ``serve``
server       checks that the extra is there, loads what takes long, and runs the app
static/      the page itself: one HTML file, CSS and JS modules, no build step; colours: ../report/static/
"""

from __future__ import annotations

from classifiers.service.server import serve

__all__ = ["serve"]
