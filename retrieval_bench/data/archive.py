"""Extracting an archive: safe paths only, whole or not at all, once."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import cache_dir
from retrieval_bench.progress import announce


def extracted(archive: Path) -> Path:
    """The folder with the contents of a tar `archive` (any compression), extracted into the cache on the first call.

    Members that would land outside the folder, links out of it and device files are refused (``tarfile``'s ``data`` filter). The folder
    appears under its name only when the extraction is complete, so an interrupted one is started over.

    Raises:
        UserError: not an archive, truncated or damaged, or with an unsafe member.
    """
    status = archive.stat()
    key = f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = cache_dir() / "extracted" / f"{archive.name.split('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".extracting-"))
    announce(f"extracting {archive}")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
            while tar.fileobj and tar.fileobj.read(1 << 20):  # to the end of the stream, where the compression's checksum is verified
                pass
        temporary.replace(target)
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused, a member would be written outside the folder ({error})") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{archive}: truncated or not a tar archive ({first_line(error)}); fetch it again") from None
    except OSError as error:
        if error.errno is not None:  # the disk's word, not the decompressor's
            raise
        raise UserError(f"{archive}: damaged ({error}); fetch it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
