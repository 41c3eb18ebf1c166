"""Lists of videos, in the forms that people really have, -> Sources."""
