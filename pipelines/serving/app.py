"""The HTTP API and the page. `create_app` is all that a server needs; `/docs` describes it."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.catalogue import Catalogue, Query, ServedIndex
from pipelines.serving.media import thumbnail_response, video_response
from pipelines.serving.queue import QueueFullError, SearchQueue
from vopcore.index import Answer

PAGE = Path(__file__).parent / "page"
OPEN = ("/", "/page.js", "/page.css", "/health", "/login")  # what needs no token: it says nothing of videos
COOKIE = "vopcore_token"
LOOPBACK_NAMES = ["127.0.0.1", "localhost", "[::1]", "::1"]
MAX_BODY = 2**20  # bytes of a request
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

Text = Annotated[str, StringConstraints(min_length=1, max_length=200_000, pattern=r"\S")]
Date = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Body(BaseModel):
    """A request's body; a key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Example(Body):
    """A window of an indexed video."""

    video: str
    start: float = 0.0


class SearchRequest(Body):
    """`text` (one or several) or `like`; the rest narrows down which videos are looked at."""

    text: Text | list[Text] | None = None
    like: Example | None = None
    index: str | None = None
    top: int = Field(10, ge=1, le=200)
    where: str | None = Field(
        None,
        description="a condition in SQL over video, folder, name, date, ...",
    )
    folder: str | None = None
    after: Date | None = None
    before: Date | None = None
    by_video: bool = False


class FoundMoment(BaseModel):
    """Seconds of a video. `best`: the time of the frame that matches best."""

    video: str
    start: float
    end: float
    score: float
    best: float


class SearchResponse(BaseModel):
    """`answers`: a list for each text, best first."""

    index: str
    answers: list[list[FoundMoment]]


class EmbedRequest(Body):
    """Texts to embed."""

    text: Text | Annotated[list[Text], Field(max_length=256)]
    index: str | None = None


class EmbedResponse(BaseModel):
    """Unit vectors, one per text."""

    index: str
    vectors: list[list[float]]


class IndexDescription(BaseModel):
    """What an index holds, and by which weights."""

    name: str
    method: str
    model: str
    videos: int
    moments: int
    failed: int
    folders: list[str]


class Health(BaseModel):
    """`backbones`: frozen text towers in memory, shared by the indexes."""

    status: str
    indexes: int
    backbones: int


class Login(Body):
    """The token that the server printed."""

    token: str


def create_app(
    uris: Sequence[str],
    token: str | None = None,
    check_host: bool = True,
) -> FastAPI:
    """The application over the indexes at `uris`.

    token: what requests must bring, as `Authorization: Bearer` or by `/login`; None: a server of this machine
    alone. check_host: answer only to names of this machine, so that no page of the web can ask through its
    visitor's browser. Raises BadIndexError.
    """
    catalogue = Catalogue(uris)
    queue = SearchQueue(catalogue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        queue.start()
        yield
        await queue.stop()

    app = FastAPI(
        title="vopcore",
        summary="Search videos by text, to the second",
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimit)
    if check_host:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES)
    _add_guard(app, token)
    _add_pages(app, token)
    _add_api(app, catalogue, queue)
    return app


class BodyLimit:
    """Refuses a request of more than MAX_BODY bytes, also one that does not say how long it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_BODY:
                raise HTTPException(413, f"a request has at most {MAX_BODY:,} bytes")
            return message

        await self._app(scope, limited, send)


def _add_guard(app: FastAPI, token: str | None) -> None:
    """Who may ask, how much, and headers that keep a browser from doing more than the page needs."""

    @app.middleware("http")
    async def guard(
        request: Request,
        call_next: Callable[[Request], Awaitable[Response]],
    ) -> Response:
        if token is not None and request.url.path not in OPEN and not _is_allowed(request, token):
            return JSONResponse({"detail": "this server wants its token"}, 401)
        response = await call_next(request)
        if not request.url.path.startswith(("/docs", "/redoc")):
            for name, value in SAFE_HEADERS.items():
                response.headers[name] = value
        return response

    @app.exception_handler(ValueError)
    async def refuse(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(QueueFullError)
    async def put_off(_: Request, error: QueueFullError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, {"retry-after": "1"})


def _is_allowed(request: Request, token: str) -> bool:
    header = request.headers.get("authorization", "").removeprefix("Bearer ")
    cookie = request.cookies.get(COOKIE, "")
    return any(hmac.compare_digest(given.encode(), token.encode()) for given in (header, cookie))


def _add_pages(app: FastAPI, token: str | None) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/page.js", include_in_schema=False)
    async def script() -> FileResponse:
        return FileResponse(PAGE / "page.js", media_type="text/javascript")

    @app.get("/page.css", include_in_schema=False)
    async def style() -> FileResponse:
        return FileResponse(PAGE / "page.css", media_type="text/css")

    @app.post("/login", status_code=204)
    async def login(body: Login, response: Response) -> None:
        """Trade the token for a cookie."""
        if token is not None and not hmac.compare_digest(body.token.encode(), token.encode()):
            raise HTTPException(401, "not this server's token")
        if token is not None:
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")


def _add_api(
    app: FastAPI,
    catalogue: Catalogue,
    queue: SearchQueue,
) -> None:
    @app.get("/health")
    async def health() -> Health:
        """Whether the server answers."""
        return Health(
            status="ok",
            indexes=len(catalogue.indexes),
            backbones=catalogue.num_backbones,
        )

    @app.get("/indexes")
    async def indexes() -> list[IndexDescription]:
        """The indexes that can be asked."""
        await queue.run(catalogue.refresh)
        return [_describe(served) for served in catalogue.indexes.values()]

    @app.post("/search")
    async def search(body: SearchRequest) -> SearchResponse:
        """The seconds of videos that match a text, or an example."""
        served = catalogue.get(body.index)
        answers = await queue.ask(served, _queries(body))
        moments = []
        for found in answers:
            moments.append([FoundMoment(**_public(answer)) for answer in found])
        return SearchResponse(index=served.name, answers=moments)

    @app.post("/embed")
    async def embed(body: EmbedRequest) -> EmbedResponse:
        """Texts as vectors."""
        served = catalogue.get(body.index)
        texts = [body.text] if isinstance(body.text, str) else body.text
        return EmbedResponse(
            index=served.name,
            vectors=await queue.run(catalogue.embed, served, texts),
        )

    @app.get("/video/{index}/{video:path}", response_class=FileResponse)
    def video(
        index: str,
        video: str,
        request: Request,
    ) -> Response:
        """A video of an index; `Range` asks for a part."""
        return video_response(_known(index).index, video, request.headers.get("range"))

    @app.get("/thumbnail/{index}/{video:path}", response_class=Response)
    def thumbnail(
        index: str,
        video: str,
        time: float = 0.0,
    ) -> Response:
        """A small picture of a video, the nearest to `time` (seconds) of those in the index, JPEG."""
        return thumbnail_response(_known(index).index, video, time)

    def _known(name: str) -> ServedIndex:
        try:
            return catalogue.get(name)
        except ValueError as error:
            raise HTTPException(404, str(error)) from None


def _queries(body: SearchRequest) -> list[Query]:
    """A query for each text, or the one of the example. Raises ValueError."""
    if (body.text is None) == (body.like is None):
        raise ValueError("text or like: say what to look for, by one of the two")
    shared = body.model_dump(exclude={"text", "like", "index"})
    if body.like is not None:
        return [Query(like_video=body.like.video, like_start=body.like.start, **shared)]
    texts = [body.text] if isinstance(body.text, str) else body.text or []
    if len(texts) > 256:
        raise ValueError(f"text: {len(texts)} texts at once; 256 at most")
    return [Query(text=text, **shared) for text in texts]


def _public(answer: Answer) -> dict[str, Any]:
    values = asdict(answer)
    del values["row"]
    return values


def _describe(served: ServedIndex) -> IndexDescription:
    table = served.index.table
    header = served.index.header
    return IndexDescription(
        name=served.name,
        method=header.method,
        model=header.model,
        videos=len(table.videos),
        moments=table.num_moments,
        failed=len(table.failed),
        folders=served.index.filter.folders(),
    )
