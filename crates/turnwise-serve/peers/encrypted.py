"""Reaches environments, and a trainer, behind a proxy that encrypts: https and wss, with a certificate of this script.

    cargo build --release
    python3 crates/turnwise-serve/peers/encrypted.py target/release/turnwise

Needs openssl. Shows that each client accepts the certificate of its authority, refuses it without, and that a worker behind the
proxy runs a trainer's episodes.
"""

import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

RUN = """
[run]
steps = 2
[environment]
name = "guess"
[warm_start]
steps = 20
[rollout]
groups_per_step = 2
group_size = 4
[rollout.workers]
address = "127.0.0.1:{port}"
[eval]
episodes = 8
"""


def certificates(work):
    """Makes an authority, and a certificate of it for localhost."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=work, check=True, capture_output=True)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key",
            "-out", "ca.pem")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "own.key", "-out", "own.csr")
    with open(f"{work}/names", "w") as file:
        file.write("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-days", "2", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "names", "-out", "own.pem")


def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for one in (source, sink):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(listener, context, port):
    while True:
        plain, _ = listener.accept()
        def pipe(plain=plain):
            try:
                outer = context.wrap_socket(plain, server_side=True)
                inner = socket.create_connection(("127.0.0.1", port))
            except OSError:
                plain.close()
                return
            threading.Thread(target=copy, args=(outer, inner), daemon=True).start()
            copy(inner, outer)
        threading.Thread(target=pipe, daemon=True).start()


def proxy(work, port):
    """Encrypts what goes to a port; returns the port of clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{work}/own.pem", f"{work}/own.key")
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener, context, port), daemon=True).start()
    return listener.getsockname()[1]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(port):
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
    sys.exit(f"nothing listens at {port}")


def main():
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as work:
        certificates(work)
        trusting = {**os.environ, "SSL_CERT_FILE": f"{work}/ca.pem"}
        for protocol in ("openenv", "ors"):
            port = free_port()
            server = subprocess.Popen([program, "serve", "guess", "--protocol", protocol, "--address", f"127.0.0.1:{port}"],
                                      stdout=subprocess.DEVNULL)
            try:
                wait_for(port)
                url = f"url=https://localhost:{proxy(work, port)}"
                check = [program, "env", "check", protocol, url, "ready_timeout_s=5"]
                for name, environment in (("trusted", trusting), ("unknown", os.environ)):
                    done = subprocess.run(check, env=environment, capture_output=True, text=True)
                    lines = (done.stdout + done.stderr).strip().splitlines()
                    said = [line for line in lines if "passed" in line or "error" in line]
                    print(f"{protocol}, certificate {name}: status {done.returncode}: {said[-1] if said else lines[-1]}")
            finally:
                server.terminate()
        port = free_port()
        settings = f"{work}/run.toml"
        with open(settings, "w") as file:
            file.write(RUN.format(port=port))
        trainer = subprocess.Popen([program, "train", settings, f"run.directory={work}/run"], stdout=subprocess.PIPE, text=True)
        wait_for(port)
        url = f"https://localhost:{proxy(work, port)}"
        worker = subprocess.run([program, "worker", "--trainer", url], env=trusting, capture_output=True, text=True)
        print("worker:", worker.stdout.strip().splitlines()[-1])
        print("trainer:", trainer.communicate()[0].strip().splitlines()[-1], "status", trainer.returncode)


main()
