"""Images and videos in and out for people: drawing, colour maps, contact sheets, video files."""
