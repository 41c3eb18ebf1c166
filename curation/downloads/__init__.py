"""URLs -> local files: by yt-dlp, from public addresses alone, politely."""
