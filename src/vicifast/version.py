"""The version of both packages; reading it from the installed distribution takes as long as a command runs."""

VERSION = "0.1.0"
