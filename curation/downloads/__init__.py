"""URLs -> local files: by yt-dlp, from public addresses alone, politely."""

from curation.downloads.fetches import download, id_in

__all__ = ["download", "id_in"]
