#!/bin/sh
# Shows the value of GREETING at every path that has no file, and logs each request.
greeting=$(printf '%s' "${GREETING:-Hello}" | sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g')
mkdir -p /www
printf '<!doctype html>\n<meta charset="utf-8">\n<title>hello</title>\n<h1>%s</h1>\n' "$greeting" > /www/index.html
echo "hello: listening on port 80"
exec httpd -f -vv -p 80 -h /www
