// Search in pages that are read from the disk. Browsers start no worker from a file: URL, so a frame takes its place there:
// it runs the worker's script with the few names that workers have, and messages go to and fro as events.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = this.onerror = null;
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      const page = inside.document;
      inside.self = inside;
      inside.postMessage = (data) => this.deliver("message", data);
      // Scripts are loaded one after the other; what imports them goes on when all are there.
      inside.importScripts = (...urls) =>
        urls.map((one) => () => this.load(page, one)).reduce((done, next) => done.then(next), Promise.resolve());
      this.load(page, url).then(() => {
        this.ready = true;
        for (const data of this.waiting.splice(0)) this.postMessage(data);
      }, (error) => this.deliver("error", error));
    }

    load(page, url) {
      return new Promise((resolve, reject) => {
        const script = page.createElement("script");
        script.src = new URL(url, location.href);
        script.onload = resolve;
        script.onerror = reject;
        page.head.append(script);
      });
    }

    deliver(type, data) {
      const event = new MessageEvent(type, { data });
      this.dispatchEvent(event);
      this["on" + type]?.(event);
    }

    postMessage(data) {
      if (!this.ready) {
        this.waiting.push(data);
        return;
      }
      const inside = this.frame.contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
