"""A form: one file and the fields beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from api.http.error_responses import ApiError, printable


@asynccontextmanager
async def read_form(request: Request, max_fields: int) -> AsyncIterator[tuple[UploadFile, dict[str, str]]]:
    """Give the file of a form, and its other fields.

    Raises:
        ApiError: 400, the body is no form; 422, there is no file, or a field is there twice.
    """
    try:
        form = await request.form(max_files=1, max_fields=max_fields)
    except (HTTPException, UnicodeError) as error:  # what Starlette makes of a form that cannot be read
        reason = error.detail if isinstance(error, HTTPException) else error
        raise ApiError(400, "invalid_form", f"the body is no form: {reason}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(422, "missing_field", "file is missing; send it as a file of the form", param="file")
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        names = [name for name, _ in form.multi_items()]
        for name in names:
            if names.count(name) > 1:
                raise ApiError(422, "repeated_field", f"{name} is there more than once; send it once", param=name)
        for name, value in [*fields, ("file", file.filename or "")]:
            if printable(name + value) != name + value:  # its charset may say that it is anything
                raise ApiError(422, "invalid_value", f"{name} is not valid Unicode; send UTF-8", param=name)
        yield file, dict(fields)
    finally:
        await form.close()
