"""The score job: rows of any number -> the same rows with their dense reward; over processes, on after a kill."""
