"""Multipart forms with one file and text fields."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from api.http.error_responses import ApiError, printable


@asynccontextmanager
async def read_form(request: Request, max_fields: int) -> AsyncIterator[tuple[UploadFile, dict[str, str]]]:
    """Yield the file of a form and its text fields; the file is closed at the end.

    Raises:
        ApiError: 400 if the body is not a form; 422 if the file is missing or a field is repeated.
    """
    try:
        form = await request.form(max_files=1, max_fields=max_fields)
    except (HTTPException, UnicodeError) as error:  # Starlette raises either for a malformed form
        reason = error.detail if isinstance(error, HTTPException) else error
        raise ApiError(400, "invalid_form", f"the body is not a valid form: {reason}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(422, "missing_field", "file is missing; send it as a file of the form", param="file")
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        names = [name for name, _ in form.multi_items()]
        for name in names:
            if names.count(name) > 1:
                raise ApiError(422, "repeated_field", f"{name} was sent more than once; send it once", param=name)
        for name, value in [*fields, ("file", file.filename or "")]:
            if printable(name + value) != name + value:  # the declared charset may decode to lone surrogates
                raise ApiError(422, "invalid_value", f"{name} is not valid Unicode; send UTF-8", param=name)
        yield file, dict(fields)
    finally:
        await form.close()
