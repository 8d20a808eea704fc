#!/bin/sh
# Shows the value of GREETING, and logs each request.
greeting=$(printf '%s' "${GREETING:-Hello}" | sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g')
mkdir -p /www
printf '<!doctype html>\n<meta charset="utf-8">\n<title>hello</title>\n<h1>%s</h1>\n' "$greeting" > /www/index.html
httpd -f -vv -p 80 -h /www &
server=$!
# The first process of a container is not ended by a signal that it does not handle.
trap 'echo "hello: stopping"; kill $server; exit 0' TERM INT
echo "hello: listening on port 80"
wait $server
