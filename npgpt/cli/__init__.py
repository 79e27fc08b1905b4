"""The command line: `npgpt COMMAND`, one file a command, thin: parse, call, print."""
