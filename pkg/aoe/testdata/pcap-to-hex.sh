#!/bin/sh
# Prints the frames of a capture, one a line, in hexadecimal.
tcpdump -t -xx -r "$1" 2>/dev/null | awk '
  /^[[:space:]]+0x/ { sub(/^[^:]*:/, ""); gsub(/[[:space:]]/, ""); line = line $0; next }
  line { print line; line = "" }
  END { if (line) print line }'
