"""A disk that loses, at a power cut, whatever was not synced: every state of the disk that a cut may leave.

What a file holds is safe once the file was synced, a name in a folder once the folder was. Everything else may or may
not be there: names early or late, files empty or cut in the middle. `Disk` follows a folder through `os.fsync`.
"""

import os
import random
from pathlib import Path


class Disk:
    """Calls ``cut(disk)`` before and after everything that is synced below ``root``."""

    def __init__(self, root, monkeypatch, cut):
        self.root, self._cut, self._inside = root, cut, False
        self.contents, self.names = {}, {}  # by inode: what was synced
        self._held = []  # open descriptors, so that no inode's number is given away
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, file):
        descriptor = file if isinstance(file, int) else file.fileno()
        if self._inside:  # syncs of the check itself are not recorded
            self._fsync(descriptor)
            return
        self._call()
        self._fsync(descriptor)
        inode = os.fstat(descriptor).st_ino
        if inode not in self.contents and inode not in self.names:
            self._held.append(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            self.names[inode] = entries(Path(f"/proc/self/fd/{descriptor}"))
        else:
            self.contents[inode] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        self._call()

    def _call(self):
        self._inside = True
        try:
            self._cut(self)
        finally:
            self._inside = False

    def leave(self, to, rng, *, names):
        """Write to ``to`` what the disk may hold; names as ``synced``, as ``present``, or ``mixed``: each by itself."""
        present = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = Path(folder, name)
                present[path.stat().st_ino] = path
        self._leave(self.root.stat().st_ino, self.root, present, to, rng, names)

    def _leave(self, inode, folder, present, to, rng, names):
        to.mkdir()
        synced, now = self.names.get(inode, {}), entries(folder) if folder is not None else {}
        for name in sorted(synced.keys() | now.keys()):
            pick = rng.choice(["synced", "present"]) if names == "mixed" else names
            child, is_folder = (synced if pick == "synced" else now).get(name, (0, False))
            if not child:
                continue
            if is_folder:
                self._leave(child, present.get(child), present, to / name, rng, names)
            else:
                (to / name).write_bytes(self._content(child, present, rng))

    def _content(self, inode, present, rng):
        safe = self.contents.get(inode, b"")
        path = present.get(inode)
        written = path.read_bytes() if path is not None else safe
        if not written.startswith(safe):  # overwritten or cut in place: either is possible
            return rng.choice([safe, written])
        return written[: rng.choice([len(safe), len(written), rng.randint(len(safe), len(written))])]

    def close(self):
        for descriptor in self._held:
            os.close(descriptor)


def entries(folder):
    """The inode of each name in a folder, and whether it is a folder."""
    return {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(folder)}


def cut_states(disk, to, rng):
    """Yield folders with what a cut may leave now, one for each way of treating names."""
    for number, names in enumerate(("synced", "present", "mixed")):
        disk.leave(to / str(number), random.Random(rng.random()), names=names)
        yield to / str(number)
