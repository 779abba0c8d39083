// Verifies a webhook by Standard Webhooks with Java's own classes alone (HMAC-SHA256, `v1`). Java 17 or later.

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.Base64;
import java.util.Map;
import java.util.TreeMap;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public class Verify {
    static final long TOLERANCE_SECONDS = 5 * 60;

    /** Whether the webhook is from whoever has the secret, and was signed within the last minutes. `headers` by lower-case
     * name; `body` exactly as it came. */
    static boolean verify(String secret, Map<String, String> headers, byte[] body) throws Exception {
        String id = headers.get("webhook-id");
        String timestamp = headers.get("webhook-timestamp");
        String signatures = headers.get("webhook-signature");
        if (id == null || timestamp == null || signatures == null || !secret.startsWith("whsec_")) return false;
        long age;
        try {
            age = Math.abs(Instant.now().getEpochSecond() - Long.parseLong(timestamp));
        } catch (NumberFormatException error) {
            return false;
        }
        if (age > TOLERANCE_SECONDS) return false;
        byte[] key = Base64.getDecoder().decode(secret.substring("whsec_".length()));
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        mac.update((id + "." + timestamp + ".").getBytes(StandardCharsets.UTF_8));
        byte[] expected = mac.doFinal(body);
        // While a secret is rotated there are two signatures: one that fits is enough.
        for (String signature : signatures.split(" ")) {
            if (!signature.startsWith("v1,")) continue;
            try {
                byte[] given = Base64.getDecoder().decode(signature.substring("v1,".length()));
                if (MessageDigest.isEqual(given, expected)) return true;
            } catch (IllegalArgumentException error) {
                // Not base64: not one that fits.
            }
        }
        return false;
    }

    /** Reads a line `secret`, lines `name: value`, an empty line, and the body. */
    public static void main(String[] arguments) throws Exception {
        String secret = line();
        Map<String, String> headers = new TreeMap<>();
        for (String line = line(); !line.isEmpty(); line = line()) {
            int colon = line.indexOf(": ");
            headers.put(line.substring(0, colon), line.substring(colon + 2));
        }
        System.out.println(verify(secret, headers, System.in.readAllBytes()) ? "valid" : "invalid");
    }

    private static String line() throws Exception {
        ByteArrayOutputStream line = new ByteArrayOutputStream();
        for (int next = System.in.read(); next != '\n' && next >= 0; next = System.in.read()) line.write(next);
        return line.toString(StandardCharsets.UTF_8);
    }
}
