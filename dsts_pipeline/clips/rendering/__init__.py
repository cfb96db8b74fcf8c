"""What the embedded data sets share: drawing of pictures, encoding, writing a folder of clips.

Scene and motion of a clip enter from the data sets' own folders; video files leave.
"""
