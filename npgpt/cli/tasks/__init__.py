"""The tasks of `npgpt evaluate`, one file each: read, measure, print, write."""
