"""The page's routes.

    GET  /                       the page
    GET  /api/run                what run it is, and what an upload may cost
    GET  /api/map                the rows that are drawn
    GET  /api/ids?contains=      rows by a part of their id
    GET  /api/rows/{position}    a row, its neighbours and their vote
    GET  /api/audio/{position}   its recording
    POST /api/query              the body is a recording: its place, its neighbours and their vote

A row is named by its position in the run's manifest. Every error is ``{"error": reason}``.
"""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import soundfile
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from classifiers.service.corpus_map import LABELS, CorpusMap
from classifiers.service.guard import LOCAL_HOSTS, Guard
from classifiers.service.uploads import Limits, Refusal, Uploads
from extractor.audio.decode import DecodeOptions, decode_batch
from extractor.audio.probe import num_samples_16k, probe
from extractor.errors import HserError, InputError, SettingsError
from extractor.run.recipe import channel_of
from extractor.types import SAMPLE_RATE, Failure, Seconds, Utterance

if TYPE_CHECKING:
    from classifiers.lookup import Hits, Lookup, Neighbour

STATIC = Path(__file__).parent / "static"
BASE_STYLE = Path(__file__).parents[1] / "report" / "static" / "base.css"  # the report's, too
# Containers that every browser plays, and what they are called there. Others are decoded here.
PLAYED: dict[str, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "mp3": "audio/mpeg",
}
MAX_DECODED: Seconds = 1800.0  # 58 MB as WAV
MAX_IDS = 20  # listed of those that contain a text
K = Annotated[int, Query(ge=1, le=100)]
DEFAULT_K = 10
# Forms of a foreign site can send these without asking first.
FORM_TYPES = ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded")


def make_app(
    lookup: Lookup,
    projection: str | None = None,
    limits: Limits | None = None,
    hosts: Collection[str] | None = LOCAL_HOSTS,
) -> FastAPI:
    """The page of one opened run.

    ``projection``: "umap", "pca", or None for umap where it can be done. ``hosts``: names by which the
    server may be asked; None for any, where it listens beyond this machine.
    """
    page = _Page(lookup, CorpusMap(lookup, projection), limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        page.uploads.close()

    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title="hser", openapi_url=None, lifespan=lifespan)
    app.state.corpus_map = page.corpus_map
    app.add_middleware(Guard, hosts=hosts)
    app.get("/")(lambda: FileResponse(STATIC / "index.html"))
    app.get("/static/base.css")(lambda: FileResponse(BASE_STYLE))
    app.get("/api/run")(page.run)
    app.get("/api/map")(page.map)
    app.get("/api/ids")(page.ids)
    app.get("/api/rows/{position}")(page.row)
    app.get("/api/audio/{position}")(page.audio)
    app.post("/api/query")(page.query)
    app.mount("/static", StaticFiles(directory=STATIC))
    for kind in (StarletteHTTPException, RequestValidationError, ClientDisconnect, Refusal, HserError):
        app.add_exception_handler(kind, _in_words)
    return app


class _Page:
    def __init__(self, lookup: Lookup, corpus_map: CorpusMap, limits: Limits) -> None:
        self.lookup, self.store, self.corpus_map = lookup, lookup.store, corpus_map
        # Columns once: a store makes a new list of a million rows each time that it is asked.
        store = lookup.store
        self.ids_of_rows, self.paths, self.durations = store.ids, store.paths, store.durations
        self.labels = {name: store.labels(name) for name in store.columns}
        self.uploads: Uploads[tuple[tuple[float, float], Hits]] = Uploads(self._look_up, limits)
        self._map: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        limits = self.uploads.limits
        return {
            "name": self.store.path.name,
            "model": self.store.settings.get("model", ""),
            "layer": self.lookup.layer,
            "pooling": self.lookup.pooling,
            "index": self.lookup.index.kind,
            "num_rows": len(self.store),
            "hours": float(self.store.num_samples.sum()) / SAMPLE_RATE / 3600,
            "max_bytes": limits.num_bytes,
            "max_seconds": limits.duration,
        }

    def map(self) -> JSONResponse:
        if self._map is None:
            self._map = self.corpus_map.to_dict()
        return JSONResponse(self._map)

    def ids(self, contains: Annotated[str, Query(min_length=1, max_length=200)]) -> dict[str, Any]:
        """Those that begin with the text first, then in the run's order."""
        text = contains.lower()
        found = [row for row, name in enumerate(self.ids_of_rows) if text in name.lower()]
        found.sort(key=lambda row: not self.ids_of_rows[row].lower().startswith(text))
        return {"rows": [self._named(row) for row in found[:MAX_IDS]], "num_rows": len(found)}

    def row(self, position: int, k: K = DEFAULT_K) -> dict[str, Any]:
        row = self._row_at(position)
        hits = self.lookup.search(row=self.ids_of_rows[row], k=k)
        labels = {name: column[row] for name, column in self.labels.items()}
        return {**self._named(row), "labels": labels, **self._found(hits)}

    def audio(self, position: int, request: Request) -> Response:
        row = self._row_at(position)
        start, end = (
            None if np.isnan(t) else float(t) for t in (self.store.starts[row], self.store.ends[row])
        )
        utterance = Utterance(self.ids_of_rows[row], self.paths[row], start, end)
        try:
            return audio_of(utterance, channel_of(self.store.settings), request.headers.get("range"))
        except InputError as error:  # of the corpus, not of the request
            raise HTTPException(404, str(error)) from error

    async def query(self, request: Request) -> dict[str, Any]:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() in FORM_TYPES:
            raise HTTPException(415, "send the recording itself as the body, with a type such as audio/wav")
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self.uploads.limits.num_bytes:
            raise Refusal(413, f"larger than {self.uploads.limits.num_bytes / 2**20:g} MB")
        place, hits = await self.uploads.take(request.stream())
        return {"x": place[0], "y": place[1], **self._found(hits)}

    def _look_up(self, path: Path) -> tuple[tuple[float, float], Hits]:
        (query,) = self.lookup.embed(path, corpus="files")
        if isinstance(query, Failure):
            raise InputError(query.reason)
        hits = self.lookup.search(query.vector, k=DEFAULT_K)
        return self.corpus_map.place(query.vector), hits

    def _row_at(self, position: int) -> int:
        positions = self.store.positions
        row = int(np.searchsorted(positions, position)) if abs(position) < 1 << 62 else len(positions)
        if row == len(positions) or positions[row] != position:
            raise HTTPException(404, f"no row has the position {position}")
        return row

    def _named(self, row: int) -> dict[str, Any]:
        named: dict[str, Any] = {name: self.labels[name][row] for name in LABELS if name in self.labels}
        return named | {
            "position": int(self.store.positions[row]),
            "id": self.ids_of_rows[row],
            "duration": float(self.durations[row]),
        }

    def _found(self, hits: Hits) -> dict[str, Any]:
        return {
            "neighbours": [self._neighbour(each) for each in hits.neighbours],
            "vote": [{"emotion": emotion, "share": share} for emotion, share in hits.vote.items()],
            "winner": hits.winner,
            "confidence": hits.confidence,
            "margin": hits.margin,
        }

    def _neighbour(self, each: Neighbour) -> dict[str, Any]:
        return {"rank": each.rank, "similarity": each.similarity, **self._named(each.row)}


async def _in_words(_: Request, error: Exception) -> JSONResponse:
    """Any error that has a reason, as JSON."""
    match error:
        case StarletteHTTPException():
            return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
        case RequestValidationError():
            first = error.errors()[0]
            return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)
        case Refusal():
            headers = {"Retry-After": "2"} if error.status == 503 else None
            return JSONResponse({"error": error.reason}, error.status, headers)
        case InputError() | SettingsError():
            return JSONResponse({"error": str(error)}, 422)
        case ClientDisconnect():  # nobody is there to read it
            return JSONResponse({"error": "the request did not come to its end"}, 400)
    return JSONResponse({"error": str(error)}, 500)  # the run or the model: not the request's fault


# A row's own recording. The path is the store's, never the request's; and what no header parser knows as
# audio is not sent, so that a store from elsewhere cannot make the page hand out other files.


def audio_of(utterance: Utterance, channel: int | None = None, byte_range: str | None = None) -> Response:
    """The recording's own bytes, or for a segment, or what browsers do not play, a WAV at 16 kHz.

    ``channel``: that such a WAV is of; None: the average. ``byte_range``: the request's ``Range``.
    Raises InputError where there is nothing to play.
    """
    (header,) = probe([utterance], workers=1)
    if isinstance(header, Failure):
        raise InputError(f"{utterance.id}: {header.reason}")
    whole = utterance.start is None and utterance.end is None
    if whole and header.container in PLAYED:
        return FileResponse(utterance.path, media_type=PLAYED[header.container])
    duration = num_samples_16k(header, utterance) / SAMPLE_RATE
    if duration > MAX_DECODED:
        raise InputError(
            f"{utterance.id}: {duration / 60:.0f} min; of segments and of {header.container} up to"
            f" {MAX_DECODED / 60:.0f} min are played"
        )
    (decoded,) = decode_batch([utterance], [header], DecodeOptions(channel, workers=1, checksum=False))
    if isinstance(decoded, Failure):
        raise InputError(f"{utterance.id}: {decoded.reason}")
    wav = io.BytesIO()
    soundfile.write(wav, decoded.waveform, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return _part(wav.getvalue(), byte_range)


def _part(data: bytes, byte_range: str | None) -> Response:
    """Those bytes of a WAV that were asked for (RFC 9110, 14.2); without ranges Chromium does not seek."""
    headers = {"Accept-Ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", byte_range or "", re.ASCII)
    if match is None or not any(match.groups()):  # of another form: may be ignored
        return Response(data, media_type="audio/wav", headers=headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1 if first and last else len(data), len(data))
    if start >= stop:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Response(data[start:stop], 206, headers, media_type="audio/wav")
