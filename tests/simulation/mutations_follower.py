"""Ways to break the Follower that its simulation has to see: by module, old and new text."""

MUTATIONS = {
    "apiserver/follower.py": {
        "what a streaming list has is told before it is whole": (
            "items[object_key(line.raw, self._resource.kind)] = told.item",
            "items[object_key(line.raw, self._resource.kind)] = told.item; self._emit(told)",
        ),
        "half a streaming list is taken for a whole one": (
            'raise ApiError("API server", "the streaming list has no end")',
            'return tuple(items.values()), "11"',
        ),
        "the version does not advance with a deletion": (
            "            if line.version:\n",
            '            if line.version and line.kind != "DELETED":\n',
        ),
        "the version does not advance with a bookmark": (
            "            if line.version:\n",
            '            if line.version and line.kind != "BOOKMARK":\n',
        ),
        "the version does not advance with an object that is passed over": (
            "            if line.version:\n",
            "            if line.version and not isinstance(told, Skipped):\n",
        ),
        "deletions are passed over": (
            "return Deleted(name, object_key(line.raw, self._resource.kind), arrived)",
            "return None",
        ),
        "an object that goes while a streaming list arrives stays": (
            "items.pop(told.key, None)",
            "pass",
        ),
        "changes of what is there are passed over": (
            'if line.kind in ("ADDED", "MODIFIED"):',
            'if line.kind == "MODIFIED":\n                return None\n'
            '            if line.kind == "ADDED":',
        ),
        "a bookmark is taken for an object": (
            'if line.kind in ("ADDED", "MODIFIED"):',
            'if line.kind in ("ADDED", "MODIFIED", "BOOKMARK"):',
        ),
        "the list after 410 comes from the server's cache": (
            'self._version, self._list_from, self._breaks = "", "", 0',
            'self._version, self._list_from, self._breaks = "", "0", 0',
        ),
        "a version that cannot be watched from is never given up": (
            "_BREAKS_BEFORE_LIST = 3",
            "_BREAKS_BEFORE_LIST = 10**9",
        ),
        "a break at another version counts": (
            "            if self._version != before:\n",
            "            if not before:\n",
        ),
        "no back-off behind what took its time to be refused": (
            "        self._begun = math.inf\n        error",
            "        self._begun = self._clock()\n        error",
        ),
        "a back-off behind a watch that lived": ("_LIVED_SECONDS = 5.0", "_LIVED_SECONDS = 1000.0"),
        "hurry is not heeded": (
            "woken = self._hurry if self._hurries.due else self._stopped",
            "woken = self._stopped",
        ),
        "hurry is not heeded while an attempt is under way": (
            "            self._heed(outcome)\n",
            "            self._heed(outcome)\n            self._hurry.clear()\n",
        ),
        "an event of an unknown type is taken for an object": (
            'raise UnknownObject(f"an event of the unknown type {shown(line.kind)}")',
            "return Changed(name, self._resource.read(line.raw), arrived)",
        ),
        "hurry without a limit": ("                self._hurries.done()\n", ""),
        "hurry cuts Retry-After short": (
            "if outcome.least and self._stopped.wait(outcome.least):",
            "if outcome.least and self._hurry.wait(outcome.least):",
        ),
        "a server is looked for without a limit": ("                self._looks.done()\n", ""),
        "what the server does not know is asked for again": (
            "            self._sparing = {}\n",
            "            pass\n",
        ),
        "a streaming list that never was whole is asked for again": (
            "            self._streamed = False\n            try:",
            "            try:",
        ),
        "a watch has no more patience than its beginning": (
            "        answer.be_patient(patience)\n",
            "",
        ),
        "bookmarks that stop are waited for as long as a watch may last": (
            "                answer.be_patient(_BOOKMARK_PATIENCE)\n",
            "                pass\n",
        ),
        "a watch that is open again is not told": (
            "            self._emit(Recovered(self.name))\n            lines",
            "            lines",
        ),
        "new credentials are trouble": (
            "ending = Ending.SUPERSEDED",
            'ending, error = Ending.UNREACHABLE, AgentError("API server", "superseded")',
        ),
    },
    "apiserver/resources.py": {
        "half a list is taken for a whole one": (
            'raise ApiError("API server", f"cannot {doing}: {error}") from None',
            'metadata = {"resourceVersion": "11"}',
        ),
    },
    "apiserver/bodies.py": {
        "410 is not noticed as an event": (
            'if code == 410 or status.get("reason") in ("Expired", "Gone"):',
            "if False:",
        ),
        "a version that no request could name is asked for": (
            "if not isinstance(version, str) or len(version) > _MAX_VERSION:",
            "if not isinstance(version, str):",
        ),
        "a line that comes twice is told once": (
            "            line = bytearray(start)\n",
            "            line = bytearray(b'' if start == line else start)\n",
        ),
        "what came before a piece is lost": (
            "        line += first\n",
            "        line = bytearray(first or line)\n",
        ),
        "the end within an event is taken for an end": (
            '        raise BrokenStream("the stream broke off within an event")',
            "        pass",
        ),
        "an event waits for the piece behind it": (
            "    for piece in pieces:\n",
            "    held = [b'']\n    for piece in pieces:\n        held.append(piece)\n"
            "        piece = held.pop(0)\n",
        ),
        "what was read ahead of a list's object is lost": (
            "self._text = self._text[self._at :] + self._utf8.decode(arrived)",
            "self._text = self._text[self._at :][:20] + self._utf8.decode(arrived)",
        ),
    },
    "apiserver/outcome.py": {
        "410 is not noticed as a status": ("if error.status == 410:", "if error.status == 1410:"),
        "no back-off behind a watch that ended": (
            "Follows(ENDED, Told.NEVER, Version.KEPT, Pause.BACKOFF_IF_SHORT)",
            "Follows(ENDED, Told.NEVER, Version.KEPT, Pause.NONE)",
        ),
        "no back-off behind 410": (
            'Follows("Expired", Told.NEVER, Version.DROPPED, Pause.SELDOM_NONE)',
            'Follows("Expired", Told.NEVER, Version.DROPPED, Pause.NONE)',
        ),
        "a back-off behind every 410": (
            "if pause is Pause.SELDOM_NONE and self._none.due:",
            "if False:",
        ),
        "Retry-After is not heeded": (
            "return self.error.retry_after if isinstance(self.error, ApiError) else 0.0",
            "return 0.0",
        ),
        "missing permission is no trouble": (
            'Follows("Refused", Told.ALWAYS, Version.KEPT, Pause.BACKOFF)',
            'Follows("Refused", Told.NEVER, Version.KEPT, Pause.BACKOFF)',
        ),
    },
    "backoff.py": {
        "a back-off that does not grow": (
            "min(self._delay * self.FACTOR, self.CAP)",
            "min(self._delay * 1.0, self.CAP)",
        ),
    },
}
