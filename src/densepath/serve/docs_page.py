"""The OpenAPI page: Swagger UI from files of an installed package, so that it needs no network."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, RedirectResponse

_FILES = Path(fastapi_offline.__file__).parent / "static"
_TYPES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>densepath: the API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/init.js"></script>
</html>
"""
_SCRIPT = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout",
  deepLinking: true, tryItOutEnabled: true, defaultModelsExpandDepth: 0, persistAuthorization: false,
});
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
DOCS_PATHS = ("/", "/docs", "/docs/init.js", *(f"/docs/{name}" for name in _TYPES))


def add_docs_page(app: FastAPI) -> None:
    """Serve `/docs`, to which `/` leads; all its addresses are relative, so a proxy may put it below any path."""

    @app.get("/", include_in_schema=False)
    async def lead() -> Response:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return Response(_PAGE, media_type="text/html", headers={"content-security-policy": _POLICY})

    @app.get("/docs/init.js", include_in_schema=False)
    async def script() -> Response:
        return Response(_SCRIPT, media_type="text/javascript")

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in _TYPES:
            raise HTTPException(404)
        return FileResponse(_FILES / name, media_type=_TYPES[name], headers={"cache-control": "max-age=86400"})
