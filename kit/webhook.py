"""An alert sent to a web address, which never keeps a prediction waiting."""

import json
from threading import Thread


def send_alert(url: str, event: dict, timeout: float = 5.0, retries: int = 3) -> Thread:
    """Send an alert as JSON from a thread, which says why when it could not.

    `text` and `content` are what common chats show.
    """
    told = f"{event['event']}: {event['rule']}"
    body = json.dumps(event | {"text": told, "content": told}, default=str)
    thread = Thread(target=_post, args=(url, body, timeout, retries), daemon=True)
    thread.start()
    return thread


def _post(url: str, body: str, timeout: float, retries: int) -> None:
    from urllib3 import Retry, request
    from urllib3.exceptions import HTTPError

    again = {"backoff_factor": 0.5, "status_forcelist": range(500, 600)}
    retry = Retry(retries, allowed_methods=None, **again)
    kind = {"Content-Type": "application/json"}
    try:
        answer = request(
            "POST", url, body=body, headers=kind, timeout=timeout, retries=retry
        )
        why = f"it answered {answer.status}" if answer.status >= 400 else ""
    except (HTTPError, OSError) as error:
        why = str(error)
    if why:
        print(f"An alert did not reach {url} ({why}): it stands in alerts.csv.")
