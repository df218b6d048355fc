"""The application for any WSGI server: `gunicorn wsgi:app`, or `flask --app wsgi …`."""

from broker.app import create_app

app = create_app()
