#!/usr/bin/env python3
"""Publish the newest backup and follow the session to its end. Needs: pika. Environment: HOST PORT USER PASSWORD SERVER REPOSITORY TARGET."""
import json, os, sys, uuid, pika

e = os.environ
login = pika.PlainCredentials(e["USER"], e["PASSWORD"])
channel = pika.BlockingConnection(pika.ConnectionParameters(e["HOST"], int(e["PORT"]), "/recovery", login)).channel()
queue = channel.queue_declare("", exclusive=True).method.queue  # before the command, so that no event is missed
for key in ("session.#", "command.rejected"):
    channel.queue_bind(queue, "events", key)
session, kind = str(uuid.uuid4()), "io.pginstant.command.publish.v1"  # the command's id is the session's id
command = {"specversion": "1.0", "id": session, "source": "/third-party/example", "type": kind,
           "data": {"repository": e["REPOSITORY"], "target": e["TARGET"]}}
channel.confirm_delivery()
channel.basic_publish("cmd", "mount." + e["SERVER"], json.dumps(command), pika.BasicProperties(
    content_type="application/cloudevents+json; charset=UTF-8", message_id=session, type=kind, delivery_mode=2))
for _method, _properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=600):
    event = json.loads(body) if body else sys.exit("nothing was heard for 10 minutes")
    if event.get("subject") == session:
        print(event.get("sequence"), event["type"], json.dumps(event["data"]), flush=True)
        phase = event["type"].split(".")[-2]
        if phase in ("published", "waiting", "failed", "cancelled", "completed", "rejected"):
            sys.exit(0 if phase == "published" else 1)
