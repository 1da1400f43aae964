const message = document.getElementById("message");
let running = new AbortController();

message.addEventListener("input", async () => {
  running.abort();
  running = new AbortController();
  try {
    const response = await fetch("api/tokens", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: message.value }),
      signal: running.signal,
    });
    const found = await response.json();
    document.getElementById("answer").textContent = found.error ?? JSON.stringify(found.prediction.answers);
    document.getElementById("tokens").replaceChildren(
      ...(found.tokens ?? []).map(({ token, answer }) => {
        const item = document.createElement("li");
        item.textContent = `${token} ${JSON.stringify(answer.probabilities)}`;
        return item;
      }),
    );
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
});
